"""docs/evidence.md and evidence-more.md: tables, pictures and verdicts from results kept as JSON."""
