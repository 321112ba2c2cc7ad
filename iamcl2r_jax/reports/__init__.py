"""What a person sees of results: printed matrices, the page of a run, plots."""
