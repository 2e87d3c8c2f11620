/* A JSON writer over one growing buffer. Bytes outside printable ASCII are
 * written as \u00XX, so that any file name or file content survives. */
#ifndef OBSERVER_JSON_H
#define OBSERVER_JSON_H

#include <stddef.h>

struct json {
    char *text;
    size_t length;
    size_t room;
};

void json_open(struct json *out, const char *key, char bracket);
void json_close(struct json *out, char bracket);
void json_bytes(struct json *out, const char *key, const char *bytes, size_t length);
void json_string(struct json *out, const char *key, const char *text);
void json_number(struct json *out, const char *key, long long value);
void json_hex(struct json *out, const char *key, unsigned long long value);
void json_octal(struct json *out, const char *key, unsigned int value);
void json_null(struct json *out, const char *key);
int json_flush(const struct json *out, int fd);

#endif
