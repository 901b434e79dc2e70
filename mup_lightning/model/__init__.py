"""GPT-2 with multipliers, declared parameter roles and named measuring points."""
