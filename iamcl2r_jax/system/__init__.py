"""The machine below: files, signals, processes, programs, and what is told while they run."""
