#include "form.h"

#include <string.h>

#include "json.h"
#include "say.h"

static const char *const types[] = {"text", "number", "boolean"};

bool has_form(const struct words *words) { return words->options[FORM] || words->field_count; }

// NAME[?][=TYPE][:LABEL]: TYPE is one of the types above, or A|B|C, what it is a choice of.
static void put_field(struct bytes *body, const char *word) {
    size_t name_size = strcspn(word, "=:"), type_size = 0;
    const char *type = "text", *label = word[name_size] == ':' ? word + name_size + 1 : NULL;
    bool is_optional = name_size > 1 && word[name_size - 1] == '?';
    if (word[name_size] == '=') {
        type = word + name_size + 1;
        type_size = strcspn(type, ":");
        label = type[type_size] ? type + type_size + 1 : NULL;
    } else {
        type_size = strlen(type);
    }
    put(body, "{\"name\": ");
    json_put(body, word, name_size - is_optional);
    put(body, is_optional ? ", \"required\": false" : ", \"required\": true");
    put_member(body, "label", label);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strlen(types[i]) == type_size && !strncmp(types[i], type, type_size)) {
            put_member(body, "type", types[i]);
            put(body, "}");
            return;
        }
    if (!memchr(type, '|', type_size))
        wrong("--field %s: its type is text, number or boolean, or the choices: A|B|C", word);
    put(body, ", \"type\": \"choice\", \"choices\": [");
    for (size_t at = 0; at <= type_size; at++) {
        size_t size = strcspn(type + at, "|:");
        json_put(body, type + at, size);
        at += size;
        put(body, at < type_size ? ", " : "]");
    }
    put(body, "}");
}

void put_form(struct bytes *body, const struct words *words) {
    if (words->options[FORM] && words->field_count)
        wrong("%s: the form is given by --form, or by --field", words->options[FORM]);
    if (words->options[FORM]) {
        struct bytes form = read_file(words->options[FORM]);
        struct slice text = {bytes_head(&form), bytes_length(&form)};
        if (!json_check(text))
            die(FAILED, "It is a list: [{\"name\": \"amount\", \"type\": \"number\"}]", "--form %s is not JSON",
                words->options[FORM]);
        put(body, ", \"form\": ");
        bytes_append(body, text.data, text.size);
        bytes_free(&form);
    }
    for (int i = 0; i < words->field_count; i++) {
        put(body, i ? ", " : ", \"form\": [");
        put_field(body, words->fields[i]);
    }
    if (words->field_count)
        put(body, "]");
}
