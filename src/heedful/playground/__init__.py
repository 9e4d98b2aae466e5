"""A web page that shows what steering does, token by token. Needs the `playground` extra; built on `heedful.serve`."""
