"""Figures of an experiment: what is drawn is computed by pure functions, and drawn twice, to look into and as a picture."""
