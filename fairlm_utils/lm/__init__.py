"""From text to a per-token table: documents, token ids, models, training, evaluation. Needs torch."""
