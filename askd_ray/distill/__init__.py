"""The objective: divergences, schedules, self-teachers."""
