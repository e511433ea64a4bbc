"""Load tests: open-loop arrivals, locust users, scenarios that hurt a cluster, and the report on what hedging does for it."""
