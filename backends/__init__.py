"""Everything that talks to something outside the process, behind small protocols."""
