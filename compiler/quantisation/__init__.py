"""How weights are rounded when something is known of the rows that they meet, and which formats they get."""
