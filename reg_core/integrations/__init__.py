"""REG where other people's samplers call the model. Each module needs only torch; nothing here imports its host."""
