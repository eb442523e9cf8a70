"""The shared vocabulary: requests, completions, entries, errors. Data only."""
