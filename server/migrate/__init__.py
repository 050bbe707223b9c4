"""Sessions of one tokenizer written in the tokens of another (``megacontext sessions migrate``)."""
