"""Experiments: a scenario file becomes cases, each case a migration, each migration a line in a results folder."""
