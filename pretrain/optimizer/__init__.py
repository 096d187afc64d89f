"""Updates parameters: AdamW, Muon, parameter groups, the learning rate."""
