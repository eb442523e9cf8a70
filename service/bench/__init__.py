"""What `keepgate bench` and `keepgate mock-upstream` run."""
