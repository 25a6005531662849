"""The families of models that lora-hub describes out of the box, through the same hooks as everybody's."""
