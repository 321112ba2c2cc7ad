"""The programs: what `launch/` and the installed commands call."""
