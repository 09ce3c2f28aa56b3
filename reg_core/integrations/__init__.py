"""REG where other people's samplers call the model. Each module needs torch only and imports no host."""
