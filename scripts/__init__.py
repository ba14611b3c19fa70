"""The command line and what it shows: arguments, orchestration, printing. No part of a migration itself."""
