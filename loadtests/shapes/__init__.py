"""Shapes for locust, a file each, since locust takes the first one that it finds: `-f loadtests/locustfile.py,THIS`."""
