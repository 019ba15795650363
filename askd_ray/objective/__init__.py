"""The training objective: divergences, schedules, self-teachers."""
