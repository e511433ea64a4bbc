"""The options of leaf and router that say where they take lanes without gRPC."""

import argparse

from kvshard.rpc.lane_port import lane_port_of


def add_lane_port(parser: argparse.ArgumentParser) -> None:
    """`--lane-port` and `--advertise-lane-port`."""
    parser.add_argument(
        "--lane-port",
        type=lane_port_of,
        default=0,
        metavar="PORT",
        help='where Python clients, routers and leaves talk to it past gRPC, at the same host; 0 takes a free port, "off" none',
    )
    parser.add_argument(
        "--advertise-lane-port",
        type=int,
        default=0,
        metavar="PORT",
        help="the port that leads there from outside; absent or 0: the same one",
    )
