"""Questions that people wrote over real text, and the long histories in which their evidence stands."""
