"""The web page: what Vitrail does, for a person who would rather look than read.

`views` make the answers (pictures and tables in HTML) from pictures and questions and know nothing of the web;
`service` is what a visitor can do, `page` the page around the answers, `server` its routes and `gate` the door before
them. Starlette is imported by the last two only.
"""
