"""Before a run: does this pair of models and these prompts fit together. ``examination.examine`` is the entry."""
