"""What all tests share: hypothesis without a stopwatch, and the same examples in every CI run."""

import os

from hypothesis import settings

settings.register_profile("fedmedian", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fedmedian")
