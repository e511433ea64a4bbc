"""The shell around the statistics: what is asked, and what an answer says when not all could be heard."""

import json

import pytest
from fakes.clock import FakeClock
from fakes.leaf_client import ANY_LEAF
from fakes.map_source import FakeMapSource
from fakes.memory_leaves import MemoryLeaves

