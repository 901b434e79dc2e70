"""Measurements and studies: functions from settings to results. None draws, and nothing in training knows them."""
