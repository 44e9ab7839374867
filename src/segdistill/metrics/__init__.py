"""What is counted while a domain is evaluated, and how sure the scores are."""
