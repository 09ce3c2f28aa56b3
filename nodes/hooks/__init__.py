"""What a clone of a MODEL carries into its sampling runs."""
