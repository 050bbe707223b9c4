"""What speaks to a MegaContext server over HTTP; imports neither the server nor the library."""
