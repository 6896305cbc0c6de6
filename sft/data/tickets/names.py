"""The customers' names: those in training, and those held out for evaluation."""

from __future__ import annotations


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


TRAIN_NAMES = _listed(
    "Adam Agnes Aisha Alan Alba Amara Amir Anders Anna Anton Aron Astrid Beatriz Ben Bianca Boris Bruno Carla Carlos "
    "Cecilia Chen Chloe Daniel Daria David Dina Elena Elias Emil Emma Erik Esther Eva Farid Felix Fiona Frida Gabriel "
    "Georg Grace Greta Hana Hannah Hassan Helen Hugo Ibrahim Ida Igor Ines Ivan Jack Jana Jasmin Joao Johan Jonas Jorge "
    "Julia Kai Karim Karl Katya Kenji Kofi Lara Lars Laura Leila Leo Lina Lisa Luca Lucia Luis Magda Maja Malik Marco "
    "Maria Marta Martin Max Mei Mia Mikhail Mina Mohamed Nadia Naomi Nina Noah Nora Olga Omar Oscar Otto Pablo Paul "
    "Petra Pierre Priya Rafael Rania Ravi Rita Robert Rosa Ruth Samir Sara Sergei Silvia Simon Sofia Stefan Sven Tara "
    "Theo Thomas Tina Tobias Vera Viktor Walter Wei Yara Yuki Yusuf Zara"
)
HELD_OUT_NAMES = _listed(
    "Adele Akira Alice Ana Andrei Arthur Bela Bernard Camila Clara Dmitri Dora Edgar Elsa Enzo Erica Fatima Finn "
    "Francesca Gustav Harriet Henrik Imran Irina Isaac Ivy Jamal Joanna Kamal Kira Klara Leon Liam Lorenzo Louise Manuel "
    "Margit Matteo Miriam Nabil Nikolai Oliver Paula Pavel Quentin Rachel Rashid Roman Salma Sanjay Selma Tariq Tatiana "
    "Tom Ursula Valentin Victoria Wanda Xavier Yasmin Zoe"
)
TRAIN_SURNAMES = _listed(
    "Adams Baker Berg Brandt Carter Costa Dahl Diaz Evans Ferrari Fischer Garcia Gupta Haas Hill Ito Jensen Khan Kim "
    "King Kovac Lange Lee Lopez Marino Meyer Moore Nagy Novak Okoye Park Perez Popov Reed Rossi Sato Scott Silva Singh "
    "Smith Stone Suzuki Torres Wagner Walsh Weber White Wong Young"
)
HELD_OUT_SURNAMES = _listed(
    "Abbas Andersen Bauer Bell Bianchi Cohen Cruz Duarte Fox Hansen Hart Horvat Huber Ivanov Jones Keller Lund Mensah "
    "Moreau Murphy Nakamura Olsen Ortiz Patel Quinn Ramos Shah Turner Vogel Ward"
)
