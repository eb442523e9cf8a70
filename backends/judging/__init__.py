"""A second opinion on whether one answer serves two questions."""
