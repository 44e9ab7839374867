"""A finished model in one file for others: licences, the model card, its check, the hub."""
