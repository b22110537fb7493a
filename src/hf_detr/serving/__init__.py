"""A detector behind a web page and `POST /detect`: loaded once, asked by many, with limits on what they send."""
