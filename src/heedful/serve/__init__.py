"""An OpenAI-compatible server that heeds. Needs the `serve` extra; nothing here is imported by `import heedful`."""
