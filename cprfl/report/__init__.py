"""Reports for people: what a data set is like, as text and as a page that needs nothing but itself."""
