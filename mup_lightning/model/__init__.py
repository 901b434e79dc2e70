"""GPT-2 and Llama blocks with multipliers, declared parameter roles and named measuring points."""
