"""Real team codes and invented player names."""

from __future__ import annotations

TEAMS = (
    *("ATL", "BKN", "BOS", "CHA", "CHI", "CLE", "DAL", "DEN", "DET", "GSW"),
    *("HOU", "IND", "LAC", "LAL", "MEM", "MIA", "MIL", "MIN", "NOP", "NYK"),
    *("OKC", "ORL", "PHI", "PHX", "POR", "SAC", "SAS", "TOR", "UTA", "WAS"),
)

FIRST_NAMES = (
    *("Aaron", "Andre", "Anton", "Bruno", "Caleb", "Carlos", "Cedric", "Damian", "Dario", "Darius", "Dennis"),
    *("Derek", "Desmond", "Donte", "Elijah", "Emil", "Felix", "Gabriel", "Hakeem", "Isaac", "Ivan", "Jalen"),
    *("Jamal", "Jonas", "Jordan", "Julian", "Keenan", "Kofi", "Lamar", "Leon", "Luka", "Malik", "Marcus", "Mateo"),
    *("Micah", "Nikola", "Noah", "Omar", "Oscar", "Pascal", "Quentin", "Rafael", "Rashad", "Reggie", "Samuel"),
    *("Simon", "Terrence", "Theo", "Tobias", "Victor", "Wendell", "Xavier", "Yusuf", "Zach"),
)

LAST_NAMES = (
    *("Abara", "Aldridge", "Ashford", "Bakari", "Barlow", "Bellamy", "Booker", "Brandt", "Calloway", "Carver"),
    *("Colson", "Dabney", "Delgado", "Dorsey", "Ekberg", "Ellison", "Fairley", "Fontaine", "Garrick", "Grady"),
    *("Haddad", "Hollis", "Ibarra", "Jansen", "Keller", "Kimura", "Langley", "Lockhart", "Mbaye", "Mercer"),
    *("Novak", "Okafor", "Okoye", "Pacheco", "Petrov", "Quarles", "Ramsay", "Rivers", "Sandoval", "Sharpe"),
    *("Sorensen", "Tatum", "Thibault", "Underhill", "Valdez", "Vaughn", "Whitlock", "Winslow", "Yates", "Zeller"),
)
