"""From tables to numbers, verdicts and pictures. Reads what runs have written; needs no torch."""
