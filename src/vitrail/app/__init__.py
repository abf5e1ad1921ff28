"""The web page: what Vitrail does, for a person who would rather look than read.

`views` make the answers (pictures and tables in HTML) from pictures and questions and know nothing of the web;
`page` puts them on a page, `server` lets nobody do more with it than that. Gradio is imported by these two only.
"""
