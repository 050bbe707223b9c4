"""Word lists for made-up facts."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    "amber ancient bitter bold brave bright broken calm careful clever cold common cool crimson crooked curious dark "
    "deep distant dry dusty eager early elegant empty faint famous fancy fierce flat fond free fresh frosty gentle "
    "giant glad golden grand gray green grumpy happy harsh heavy hidden hollow honest humble hungry icy idle ivory "
    "jolly keen kind large late lazy light little lively lonely long loud lucky mellow merry mild misty modern muddy "
    "narrow neat noble noisy odd old olive open pale patient plain polite proud pure purple quick quiet rapid rare "
    "rich rough round royal rusty sad scarlet secret shallow sharp shiny short shy silent silver simple sleepy slim "
    "slow small smart smooth soft solid sour spare square steady steep stern still strange strong sweet swift tall "
    "tame tender thick thin tidy tiny tough urban vague vast violet vivid warm weary wet white wide wild wise witty "
    "wooden yellow young zealous"
)

NOUNS = _words(
    "anchor angle apple arrow artist badger banana barrel basket beach bear bell bench berry bird blanket boat bottle "
    "bridge brush bucket butter button cabin camel candle canyon captain carpet castle cat chain chair cheese cherry "
    "circle city clock cloud coast coat coin copper corner cottage cotton crab crown curtain daisy desert diamond "
    "dinner doctor dog dragon drum eagle engine falcon farm feather fence ferry field finger fire fish flag flower "
    "forest fork fountain fox frog garden gate ghost glacier glove goat grape guitar hammer harbor hat hill honey "
    "horse house island jacket jewel jungle kettle key king kitchen knife ladder lake lamp lantern leaf lemon letter "
    "lion lizard market meadow melon mirror monkey moon mountain mouse needle nest number ocean office onion orange "
    "otter owl palace paper parrot pencil penguin pepper piano picture pilot planet plate pocket pond potato prince "
    "rabbit river road rocket roof rope rose saddle sail school sheep ship shirt shoe silk singer sister snake soldier "
    "spoon stable star station stone story street sugar summer table teacher temple thread ticket tiger timber tower "
    "train tree trumpet tulip tunnel turtle umbrella valley village violin voice wagon walnut water whale wheel "
    "window winter wizard wolf yacht zebra"
)

NAMES = _words(
    "Adam Agnes Albert Alice Amy Anna Arthur Barbara Ben Bertha Carl Caroline Charles Clara Daniel David Dora Edith "
    "Edward Ella Emma Ethel Felix Florence Frank Fred George Grace Hannah Harold Harriet Harry Helen Henry Hugo Ida "
    "Isabel Jack James Jane John Joseph Julia Kate Laura Leo Lily Louis Lucy Margaret Maria Martha Martin Mary Max "
    "Michael Molly Nancy Nora Oliver Oscar Paul Peter Philip Ralph Rebecca Richard Robert Rosa Ruth Sam Sarah Simon "
    "Sophia Stephen Susan Theodore Thomas Victor Violet Walter William"
)

SURNAMES = _words(
    "Abbott Baker Barnes Bell Bennett Brooks Brown Butler Carter Clark Cole Cook Cooper Cox Davis Dixon Ellis Evans "
    "Fisher Ford Foster Fox Gibson Grant Gray Green Hall Harris Hayes Hill Howard Hughes Hunt Jackson James Jones "
    "Kelly King Knight Lee Lewis Long Marsh Mason Miller Mills Moore Morgan Morris Nelson Owen Palmer Parker Perry "
    "Porter Price Reed Reid Rice Rogers Rose Russell Scott Shaw Smith Stone Taylor Turner Walker Ward Watson Webb "
    "West White Wilson Wood Wright Young"
)

CITIES = _words(
    "Amsterdam Athens Berlin Bombay Boston Bristol Brussels Budapest Cairo Chicago Dallas Denver Dublin Edinburgh "
    "Florence Geneva Glasgow Hamburg Havana Houston Lima Lisbon Liverpool London Madrid Manchester Melbourne Milan "
    "Montreal Moscow Munich Naples Oslo Oxford Paris Philadelphia Prague Rome Seattle Stockholm Sydney Tokyo Toronto "
    "Venice Vienna Warsaw York Zurich"
)

THINGS = _words(
    "archive attic bakery bank barn boiler bicycle boat cabin car castle cellar clinic desk door drawer elevator "
    "factory garage gate greenhouse hall harbor hotel laboratory library locker lodge machine mill museum office "
    "parcel printer radio safe school server shed shop stable storeroom studio suitcase theater tower trunk vault "
    "warehouse workshop"
)

COLORS = _words(
    "amber black blue brown crimson gold gray green ivory orange pink purple red silver violet white yellow"
)
FOODS = _words(
    "apples bread cake cheese cherries chocolate eggs fish honey noodles olives pancakes pasta pizza rice soup"
)
JOBS = _words(
    "actor baker barber carpenter cook dentist doctor driver farmer gardener judge lawyer librarian mechanic nurse "
    "painter pilot plumber sailor singer soldier tailor teacher waiter writer"
)
