"""`keepgate tune`: from labels to an endpoint's certificate."""
