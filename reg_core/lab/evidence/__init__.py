"""docs/evidence.md: tables, pictures and verdicts from the results, which are kept beside it as JSON."""
