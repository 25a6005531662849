"""``python -m lora_hub`` is ``lora-hub``."""

from lora_hub.cli import main

if __name__ == "__main__":
    main()
