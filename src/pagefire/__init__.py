"""Pagefire: live migration of a running guest between two daemons.

The packages of this project lie at the top of the checkout, where a reader finds them; this directory links them under one
name, so that an installed wheel claims `pagefire` in site-packages and nothing else. Imports name them by that name.
"""

__version__ = "0.1.0"
