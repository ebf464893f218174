"""One module per screen: parse, one use case, template."""
