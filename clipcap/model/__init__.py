"""ClipCap as the paper describes it: a mapping network in front of GPT-2, in plain PyTorch."""
