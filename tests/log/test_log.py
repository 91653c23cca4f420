"""The log's kit on every document driver of the registry."""

from engines.testing.log import *  # noqa: F403 (importing the kit is how it is run)
