"""A recipe carried out: the plan, the stages one after another in a run folder, the scores, and scores anew."""
